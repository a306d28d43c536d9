"""The JSON documents of the format, as frozen values."""
