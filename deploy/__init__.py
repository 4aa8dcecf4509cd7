"""Units, users and folders of a grid under systemd, and the writing of them."""
