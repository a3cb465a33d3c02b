"""Several processes that speak HTTP in front of one that has the engine (`http_processes`)."""
