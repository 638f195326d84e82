"""With this folder on PYTHONPATH, an edge whose radio is virtual writes by several bearers. See tests/bluez/eatt.py."""

from tests.bluez.eatt import spread_always

spread_always()
