"""What helps handlers that use a framework: one module per framework, imported by its users only.

They use nothing of the package that users could not.
"""
