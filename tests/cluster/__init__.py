"""The manifests and the launcher on a Kubernetes cluster: `./run.sh cluster`. README.md beside this file has more."""
