"""The English text-file annotations: what is read, what is decided, and mistakes by file and line."""

import pytest

from data_process.annotations import read_annotations, write_annotations
from data_process.video_story import read_video_story
from videonarrator.schema import Clip, NarratorError, Product, Video

BEACH = "beach.mp4\n00:00 00:05 We walk along the beach.\n00:05 00:12 The sun sets.\n"


def save(folder, **files):
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{name}.txt").write_bytes(data)
    return folder


def only(folder):
    (video,) = read_video_story(folder).videos
    return video


def test_a_folder_is_read(tmp_path):
    save(tmp_path, b=BEACH, a="My trip.MOV\n0:07 1:00 Off we go!\n")
    (tmp_path / "notes.md").write_text("not read")
    story = read_video_story(tmp_path)
    trip = (Clip(7.0, 60.0, text="Off we go!"),)
    beach = (Clip(0.0, 5.0, text="We walk along the beach."), Clip(5.0, 12.0, text="The sun sets."))
    assert story.videos == [
        Video("My trip", Product("My trip"), trip, type="Video Story"),
        Video("beach", Product("beach"), beach, type="Video Story"),
    ]
    assert story.lengthened == story.out_of_order == []
    write_annotations(tmp_path / "all.json", story.videos)
    assert list(read_annotations(tmp_path / "all.json").values()) == story.videos


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + BEACH.replace("\n", "\r\n").encode(),
        BEACH.replace("\n", "\r"),
        BEACH.replace(" ", "\t"),
        "\n \n" + BEACH.replace("\n", "\n\n \t\n"),
        BEACH.replace("00:05 ", "00:05   ").replace("along ", "along\u00a0 ").removesuffix("\n"),
    ],
)
def test_the_same_in_other_dress(tmp_path, text):
    assert only(save(tmp_path, one=BEACH)) == only(save(tmp_path, one=text))


def test_odd_characters_stay_in_the_sentence(tmp_path):
    sentence = "“Café” 🌊 <vid_patch> Narrative 2: 00:01 it's 3.5\u200b km"
    (clip,) = only(save(tmp_path, one=f"v\n00:00 00:01 {sentence}\n")).clips
    assert clip.text == sentence
    (clip,) = only(save(tmp_path, one="v\n00:00 00:01 one\u2028two\u0085three\x0bfour\n")).clips
    assert clip.text == "one two three four"  # rare line breaks are blanks, not new lines


def test_long_videos_and_names(tmp_path):
    video = only(save(tmp_path, one="talk.part.2\n75:10 120:00 Still here.\n"))
    assert video.id == "talk.part.2" and video.clips[0].start == 4510 and video.clips[0].end == 7200


def test_times_that_are_equal_and_out_of_order(tmp_path):
    text = "v.mp4\n00:09 00:09 Short.\n\n00:03 00:04 Before.\n00:03 00:03 Again.\n"
    story = read_video_story(save(tmp_path, one=text))
    spans = [(clip.start, clip.end) for clip in story.videos[0].clips]
    assert spans == [(9, 10), (3, 4), (3, 4)]
    assert story.lengthened == ["one.txt, line 2", "one.txt, line 5"]
    assert story.out_of_order == ["one.txt, line 4"]


def test_mistakes_of_all_files_are_told_together(tmp_path):
    save(
        tmp_path,
        a="\n\nfolder/v.mp4\n00:00 00:01 Fine.\n",
        b="v.mp4\n00:00 00:61 Seconds.\n00:09 00:05 Backwards.\n00:05 00:09\n\n1:02:03 1:02:05 Hours.\n",
        c="v.avi\nOnce upon a time.\n00:01 00:02Glued.\n00:01 00:02 Bell\x07.\n",
        d="00:00 00:01 No name.\n",
        e="\n \n",
        f="lonely.mp4\n",
        g=b"v2.mp4\n00:00 00:01 caf\xe9\n",
        h="v3.mp4\n00:00 00:01 Fine.\n",
    )
    with pytest.raises(NarratorError) as error:
        read_video_story(tmp_path)
    head, *lines = str(error.value).split("\n  ")
    assert head == f"{tmp_path}: 13 mistakes"
    for line, words in zip(
        lines,
        [
            "a.txt, line 3: 'folder/v.mp4' must be a video's file name, without folder",
            "b.txt, line 2: '00:00 00:61 Seconds.' has 61 seconds",
            "b.txt, line 3: '00:09 00:05 Backwards.' ends before it starts",
            "b.txt, line 4: '00:05 00:09' has no sentence",
            "b.txt, line 6: '1:02:03 1:02:05 Hours.' is not of the form mm:ss mm:ss sentence",
            "c.txt, line 1: video v stands in b.txt, too",
            "c.txt, line 2: 'Once upon a time.' is not of the form",
            "c.txt, line 3: '00:01 00:02Glued.' is not of the form",
            "c.txt, line 4: the sentence holds the control character U+0007",
            "d.txt, line 1: '00:00 00:01 No name.' is a clip; above it must be the video's name",
            "e.txt: it is empty",
            "f.txt: no clip follows the video's name 'lonely.mp4'",
            f"{tmp_path / 'g.txt'} is not UTF-8 text",
        ],
        strict=True,
    ):
        assert line.startswith(words), line


def test_many_mistakes_are_cut(tmp_path):
    save(tmp_path, one="v.mp4\n" + "wrong\n" * 30)
    with pytest.raises(NarratorError, match=r"30 mistakes\n[\s\S]*\n  \.\.\. and 10 more$"):
        read_video_story(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_no_files(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.json").write_text("{}")
    with pytest.raises(NarratorError, match=r"holds no .txt files \(found: (no folder|a.json)\)"):
        read_video_story(tmp_path / name)
