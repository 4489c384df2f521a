"""How large an installation is, without and with each extra."""
