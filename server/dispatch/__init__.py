"""What the server does, one use a module: the rules of ``engine`` over the rows of ``store``, in transactions.

``api`` translates requests into calls of these functions, and agents call them too.
"""
