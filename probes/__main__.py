"""`python -m probes asr|speaker|emotion`."""

from __future__ import annotations

import sys

from probes.cli import main

sys.exit(main())
