"""C{PCAPSVC_CONFIG=/etc/pcapsvc.toml twistd -n --pidfile= -y pcapsvc.tac}"""

import os

from twisted.application.service import Application

from pcapsvc import tap

application = Application("pcapsvc")
tap.service_from_environment(os.environ).setServiceParent(application)
