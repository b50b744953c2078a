"""A server of bundles over HTTP: `catp-serve`."""
