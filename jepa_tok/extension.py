"""fairseq2 extension: registers jepa-tok's model, dataset and tokenizer families and its asset cards.

fairseq2 finds it by the entry point `fairseq2.extension`; `FAIRSEQ2_EXTENSION_TRACE=1` shows why it failed if it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer


def register(container: DependencyContainer) -> None:
    """Registers everything; heavy imports happen here, not when the entry point is found."""
    from fairseq2.composition import register_package_assets

    from jepa_tok._fairseq2.lm import register_lm
    from jepa_tok._fairseq2.models import register_models
    from jepa_tok._fairseq2.muon import register_muon
    from jepa_tok._fairseq2.speech_data import register_speech_dataset
    from jepa_tok._fairseq2.tokenizer import register_tokenizers

    register_models(container)
    register_tokenizers(container)
    register_speech_dataset(container)
    register_lm(container)
    register_muon(container)
    register_package_assets(container, "jepa_tok.cards")
