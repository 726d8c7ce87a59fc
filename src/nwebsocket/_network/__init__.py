"""Names to byte streams: TCP, TLS, proxies. It knows no frame."""
