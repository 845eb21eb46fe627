"""The HTTP shell: media types, status codes and the documented endpoints around the data plane."""
