"""What a pod serves over HTTP: /livez, /readyz, /metrics, /status and the page, and who may ask for what."""
