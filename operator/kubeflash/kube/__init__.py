"""The only code, outside of kopf, that talks to the API server: client, leases, the feed of objects, the loop."""
