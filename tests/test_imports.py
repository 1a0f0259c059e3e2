"""Every module can be imported: of a build, what is machine code too, and what inherits from that."""

import importlib
import pkgutil

import appliance


def test_every_module_can_be_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(appliance.__path__, "appliance.")]
    assert len(names) > 100
    for name in names:
        if not name.endswith(".__main__"):
            importlib.import_module(name)
