"""The users' side of PanDA: ``prun``, ``pbook`` and the Python API of ``panda-client``, translated to our workflows."""
