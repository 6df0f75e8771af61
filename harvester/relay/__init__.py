"""The relay: a way to the server for pilots on nodes that have none.

:mod:`~harvester.relay.forward` calls the server with the pilot's own token, :mod:`~harvester.relay.mailbox` takes calls
from a shared folder (:mod:`common.relay`), :mod:`~harvester.relay.listener` from HTTP connections.
"""
