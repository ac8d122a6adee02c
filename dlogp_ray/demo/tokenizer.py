"""The character tokenizer of the demo policies: one id a character, so that text round-trips.

There is no unknown token: text with a character outside the task's alphabet raises, because a
stand-in id would be scored as if the policy had been trained on it.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dlogp_ray.demo.task import CHARACTERS

PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"

# The messages' contents in order and nothing else: [{"role": "user", "content": "347+589="}] with
# a generation prompt is the raw prompt, and user + assistant is prompt + response without an
# end-of-sequence token.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer with the ids pad 0, eos 1 and then `CHARACTERS` in order.

    Args:
        model_max_length: longest sequence that the policies can attend to, in tokens.
    """
    vocabulary = {token: i for i, token in enumerate([PAD_TOKEN, EOS_TOKEN, *CHARACTERS])}
    # WordLevel needs the name of an unknown token but no entry for it: encoding one then raises.
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        chat_template=CHAT_TEMPLATE,
    )
