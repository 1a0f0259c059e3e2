"""Every module can be imported: in a build, those that are machine code too, and those that inherit from them."""

import importlib
import pkgutil

import appliance


def test_every_module_can_be_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(appliance.__path__, "appliance.")]
    assert len(names) > 100
    for name in names:
        if not name.endswith(".__main__"):
            importlib.import_module(name)
