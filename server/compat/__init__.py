"""The protocols of other systems' clients, each translated to the uses in ``server/dispatch``: no rules of their own."""
