import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.errors import DataError
from arcdist.training.manifest import FORMAT, Entry, manifest_text, read_manifest

ENTRIES = st.dictionaries(st.text(), st.binary().map(Entry.of))
TEXT = manifest_text({"weights.safetensors": Entry.of(b"weights"), "state.json": Entry.of(b"{}\n")})


def test_an_entry_is_the_size_and_the_sha_256_of_a_file_s_content():
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert Entry.of(b"abc") == Entry(size=3, sha256=digest)


@given(ENTRIES)
def test_what_was_listed_is_read(entries):
    assert read_manifest(manifest_text(entries)) == entries


@given(ENTRIES)
def test_the_text_does_not_depend_on_the_order_of_the_files(entries):
    assert manifest_text(dict(reversed(entries.items()))) == manifest_text(entries)


def test_every_single_flipped_bit_is_refused():
    content = TEXT.encode()
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            # Latin-1 gives every byte some character; UTF-8 would refuse some before they are read.
            with pytest.raises(DataError):
                read_manifest(damaged.decode("latin-1"))


@given(position=st.integers(0, len(TEXT) - 1), byte=st.characters(max_codepoint=255))
def test_any_other_byte_in_any_place_is_refused(position, byte):
    changed = TEXT[:position] + byte + TEXT[position + 1 :]
    if changed != TEXT:
        with pytest.raises(DataError):
            read_manifest(changed)


@given(st.integers(0, len(TEXT) - 1))
def test_a_text_that_was_cut_off_is_refused(length):
    with pytest.raises(DataError):
        read_manifest(TEXT[:length])


@pytest.mark.parametrize("added", [" ", "\n", "x", "{}"])
def test_so_is_one_with_something_added(added):
    for text in (TEXT + added, added + TEXT):
        with pytest.raises(DataError):
            read_manifest(text)


def test_a_changed_checksum_is_told_as_such():
    content = json.loads(TEXT)
    content["files"]["state.json"] = content["files"]["weights.safetensors"]
    with pytest.raises(DataError, match=r"^its own checksum is wrong$"):
        read_manifest(json.dumps(content, indent=2) + "\n")


def test_a_later_format_says_that_arcdist_is_too_old():
    text = TEXT.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}')
    with pytest.raises(DataError, match=r"^format 2 is that of a later version of arcdist: update arcdist$"):
        read_manifest(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "3", '"text"', "{}", "nan", "{", "\x00"),
        *('{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {"size": 1}}}', '{"format": "1", "files": {}}'),
        *("[" * 100_000, '{"files": {"a": {"size": "1", "sha256": ""}}}'),
    ],
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(DataError, match=r"^it is no list of checksums$"):
        read_manifest(text)


@given(st.text())
def test_so_is_any_text_that_is_not_one(text):
    with pytest.raises(DataError):
        read_manifest(text)
