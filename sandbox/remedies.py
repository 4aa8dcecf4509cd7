"""What to type where a host does not let jails be made: lines to paste, from settings alone."""

from collections.abc import Mapping

MAX = "user/max_user_namespaces"
CLONE = "kernel/unprivileged_userns_clone"  #: Debian's own
APPARMOR = "kernel/apparmor_restrict_unprivileged_userns"  #: Ubuntu's, since 23.10
SETTINGS = (MAX, CLONE, APPARMOR)
_KEPT = "/etc/sysctl.d/60-gristmill.conf"
#: Gives each user's own manager, and with it ``systemd-run --user``, what jails need.
DELEGATE_REMEDY = (
    "sudo mkdir -p /etc/systemd/system/user@.service.d && "
    "printf '[Service]\\nDelegate=cpu memory pids\\n' | "
    "sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload"
)


def user_namespaces_off(settings: Mapping[str, str], is_root: bool) -> tuple[str, str]:
    """The setting that forbids user namespaces, as it is, and the remedy; empty when none does."""
    if settings.get(MAX) == "0":
        return f"{MAX.replace('/', '.')}=0", _set(MAX, 15_000)
    if not is_root and settings.get(CLONE) == "0":
        return f"{CLONE.replace('/', '.')}=0", _set(CLONE, 1)
    return "", ""


def apparmor_restricts(settings: Mapping[str, str], is_root: bool, nsjail: str) -> tuple[str, str]:
    """The same of AppArmor: a namespace may be made, and then nothing done in it."""
    if is_root or settings.get(APPARMOR) != "1":
        return "", ""
    profile = f"profile gristmill-nsjail {nsjail} flags=(unconfined) {{ userns, }}"
    path = "/etc/apparmor.d/gristmill-nsjail"
    return (
        f"{APPARMOR.replace('/', '.')}=1",
        f"printf 'abi <abi/4.0>,\\n{profile}\\n' | sudo tee {path} "
        f"&& sudo apparmor_parser -r {path}",
    )


def _set(name: str, value: int) -> str:
    """Now, and at the next boot."""
    setting = f"{name.replace('/', '.')}={value}"
    return f"sudo sysctl -w {setting} && echo {setting} | sudo tee -a {_KEPT}"
