"""The SMTP gateway appliance: a transparent SMTP proxy for Linux routers."""
