"""`torch.compile(model, backend="calumma")`: parts of a torch model as artifacts, kept on disk for the next process.

    with torch.inference_mode():
        compiled = torch.compile(model, backend="calumma", options={"budget": "30s"})
        y = compiled(x)  # compiles; the next process with the same model finds the result in the cache

Dynamo finds the backend by its entry point; nothing has to be imported. What calumma cannot compile runs as torch would
run it, and one warning says why. docs/torch-compile.md tells the rest.
"""

from calumma.integrations.torch_compile.backend_options import Options
from calumma.integrations.torch_compile.cache import CacheWarning
from calumma.integrations.torch_compile.regions import FallbackWarning, backend

__all__ = ["CacheWarning", "FallbackWarning", "Options", "backend"]
