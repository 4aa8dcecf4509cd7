"""docs/one-purchase.md is what happens: made again, apart from ids, keys, figures and times."""

import importlib.util
import pathlib

from lightning_rig import lightning_rig

_PATH = pathlib.Path(__file__).with_name("one_purchase.py")


def test_c08_the_page_of_one_purchase_is_true(tmp_path: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("one_purchase", _PATH)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with lightning_rig() as rig:
        made = script.log_of(rig, tmp_path)
    assert script.fixed(made) == script.fixed(script.PAGE.read_text())
