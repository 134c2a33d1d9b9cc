"""The configuration: a TOML file and the options of the command line, made into frozen L{Settings}."""

from pcapsvc.settings.catalogue import Catalogue
from pcapsvc.settings.general import CaptureSettings, GeneralSettings
from pcapsvc.settings.interface import InterfaceSettings
from pcapsvc.settings.load import load_settings
from pcapsvc.settings.secret import Secret
from pcapsvc.settings.section import Option
from pcapsvc.settings.settings import Settings

__all__ = [
    "CaptureSettings",
    "Catalogue",
    "GeneralSettings",
    "InterfaceSettings",
    "Option",
    "Secret",
    "Settings",
    "load_settings",
]
