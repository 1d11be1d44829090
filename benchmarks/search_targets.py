"""A target of the search's benchmarks whose layers differ in what they keep and in what they cost."""

from dataclasses import replace

from actune.targets.dense import Decoder, DecoderSizes, DenseTarget, TransformerBlock


class WideAndNarrow(DenseTarget):
    """Layers with a wide feed-forward and layers with a narrow one, in turn: where a treatment sits matters."""

    def __init__(self, layers=6):
        super().__init__(DecoderSizes(layers=layers))

    def model(self):
        wide, narrow = replace(self.sizes, hidden=768), replace(self.sizes, hidden=128)
        return Decoder(
            self.sizes, {str(i): TransformerBlock(narrow if i % 2 else wide) for i in range(self.sizes.layers)}
        )


class DeepWideAndNarrow(WideAndNarrow):
    """As many layers as a solver may meet."""

    def __init__(self):
        super().__init__(layers=128)
