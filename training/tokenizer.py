"""The bundled checkpoint's tokenizer: the official pipeline and control tokens over a small vocabulary.

Words that answers are made of are whole tokens; all other text is split into characters, because a model that reads
has to name what it sees one character at a time. Characters outside the vocabulary are split into bytes.

A byte pair encoding reaches a word only through merges. Here every merge adds one character to a word that is
spelled from its start ("▁t", "▁ti", "▁tit", ...), so that the inside of an unknown word is never merged.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

#: Words that become single tokens where they follow a space. One more shifts all later ids, also of control tokens, and
#: weights trained before that no longer fit.
WORDS = (
    "The the title of book is and author are this What Who wrote called Help me get information "
    "Read from cover text in picture image say says it to Can you Please Give only does transcribe "
    "I cannot see a an no not there any that have with as for on at by or "
    "chart table shows show value values highest lowest total between trend rises falls steady unit first last "
    "left right above below top bottom middle red green blue yellow orange purple black white gray brown pink "
    "circle square triangle star heart circles squares triangles stars hearts one two three four five six seven "
    "difference differences between images pictures second same but while "
    "row column cell Could please introduce stock Describe describe How many count "
    "million billion percent year month"
).split()

#: The official added tokens in their order: `<|endoftext|>` stands right after the plain vocabulary.
CONTROL = [
    "<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in range(1, 5)), "<|system|>", "<|end|>",
    "<|placeholder5|>", "<|placeholder6|>", "<|user|>", *(f"<|placeholder{i}|>" for i in range(7, 40)), "<|image|>",
]  # fmt: skip
#: These do not swallow the spaces that follow them; all the others do.
KEEP_SPACES = {"<|endoftext|>", "<|system|>", "<|end|>", "<|user|>"}
#: The official vocabulary ends with 64 rows for 45 control tokens, the rest unused.
CONTROL_ROWS = 64


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, ready for `save_pretrained`."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(code) for code in range(33, 127)] + list("–—’‘“”…€£°×éèüöäñ")
    merges = []
    for word in WORDS:
        for end in range(1, len(word) + 1):
            if (longer := "▁" + word[:end]) not in pieces:
                merges.append((longer[:-1], longer[-1]))
                pieces.append(longer)
    bpe = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in ("<unk>", "<s>")])
    tokenizer.add_tokens([AddedToken("</s>", rstrip=True, normalized=False, special=False)])
    tokenizer.add_special_tokens(
        [AddedToken(t, rstrip=t not in KEEP_SPACES, normalized=False, special=True) for t in CONTROL]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )


def vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows of the embedding: the plain vocabulary and the 64 rows of the control tokens."""
    return tokenizer.convert_tokens_to_ids("<|endoftext|>") + CONTROL_ROWS
