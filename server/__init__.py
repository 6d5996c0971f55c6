"""The inference server: Label Studio's predict calls, answered with a label and an uncertainty.

Imports no torch and no trainer; what it serves comes from the model repository alone.
"""
