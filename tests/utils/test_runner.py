"""What a Runner is built with."""

from mmengine.config import Config, config
from mmrobust.utils.runner import keep_layouts


def test_the_text_of_a_config_is_laid_out_once(monkeypatch):
    laid_out = []

    def layout(text, **settings):
        laid_out.append(text)
        return text.upper(), True

    monkeypatch.setattr(config, 'FormatCode', layout)
    cfg = Config(dict(a=1))
    for _ in range(2):
        keep_layouts()
        assert cfg.pretty_text == cfg.pretty_text == 'A=1'
    assert len(laid_out) == 1
    cfg.a = 2  # another text is not taken for it
    assert cfg.pretty_text == 'A=2'
    assert len(laid_out) == 2
