from pathlib import Path
from typing import Final

FILES: Final = Path(__file__).with_name("files")
"""Small HEIC and AVIF files. `make_files` beside it made them."""
