"""The tokenizer of the sample kind gives SentencePiece's own ids, whatever the text, and after reloading."""

import sentencepiece
from tiny_narrator import PIECES, tiny_config

from videonarrator.clip_inputs import encode_text
from videonarrator.modeling.backbones import BaichuanForCausalLM, add_tokens, load_tokenizer
from videonarrator.prompt import ADDED_TOKENS

TEXTS = (
    "你是不是也收伞弄湿手！",
    "商品信息：\n名称：杯子\n外观：白、红\n\n广告视频：\n",
    "镜头3/7：\n场景：",
    "表情😀👩‍👩‍👧 和　全角　空格",
    "两个  空格   三个",
    "\t制表\t符\r\n回车",
    " 前后有空格 ",
    "",
    " ",
    "\n",
    "\n\n",
    "Hello world 3.4折 ABC",
    "龘靐齉",
    "<vid_patch><s></s><unk>",
    "▁下划",
)


def test_tokenizer_gives_sentencepiece_s_ids(backbone, pieces, sample_videos, tmp_path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    tokenizer = load_tokenizer(str(backbone))
    texts = [*TEXTS, *(clip.text for video in sample_videos.values() for clip in video.clips)]
    texts += [video.product.info for video in sample_videos.values()]
    add_tokens(BaichuanForCausalLM(tiny_config(len(tokenizer))), tokenizer, ADDED_TOKENS)
    tokenizer.save_pretrained(tmp_path)
    assert len(texts) > 250
    for loaded in (tokenizer, load_tokenizer(str(tmp_path))):
        assert len(encode_text("\n", loaded)) == 1
        for text in texts:
            ids = encode_text(text, loaded)
            assert ids == model.encode(text), text
            assert loaded.decode(ids) == text.replace("▁", " ")
        assert loaded.convert_tokens_to_ids(list(ADDED_TOKENS)) == [
            PIECES + 1 + n for n in range(3)
        ]  # after [PAD]
        assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)
