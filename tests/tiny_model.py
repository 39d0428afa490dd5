"""Make a tiny random model for the tests: python tests/tiny_model.py FOLDER.

A llama of 2 layers and hidden size 32 with a byte-level BPE tokenizer trained on captions_en_de, saved as an ordinary
model folder. It runs with LLaMA-Factory's Python, as a child process of the tests: they import no torch themselves.
"""

import sys
from pathlib import Path

CAPTIONS = Path(__file__).parent.parent / "dataset_info" / "captions_en_de"


def main(folder: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    files = [str(CAPTIONS / name) for name in ("train.en", "train.de")]
    trained.train(files, vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,  # tied, it would say the last token again and again
        initializer_range=0.4,  # far enough apart that the answers differ between sentences and after 5 steps
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
