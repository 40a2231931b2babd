from distill_tune.models.published import as_named, is_published, published_folder


def test_a_folder_is_named_as_it_was_asked_for(tmp_path):
    folder = published_folder("models/Qwen3-0.6B")
    assert is_published(folder)
    assert str(as_named(folder)) == "models/Qwen3-0.6B"
    assert as_named(tmp_path) == tmp_path
    assert published_folder("models/mine") is None
