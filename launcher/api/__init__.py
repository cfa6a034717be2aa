"""What a pod serves over HTTP: /livez, /readyz, /metrics and /status, and who may ask for what."""
