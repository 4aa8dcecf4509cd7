"""Jails: start them, limit them, meter them, say why they ended. Start at host.prepare_host."""
