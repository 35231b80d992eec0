"""Debian's archive as the host is configured for it, in both styles of sources, and for other suites."""

from __future__ import annotations

from roost.storage.archive import Source, derive, network_settings, parse_deb822, parse_list, usable

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_one_line_entries_are_read() -> None:
    text = f"""
# a comment
deb http://mirror.example/debian bookworm main contrib  # the base
deb [arch=amd64 signed-by={KEY}] https://mirror.example/security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb https://download.example/linux bookworm stable
"""
    assert parse_list(text) == [
        Source("http://mirror.example/debian", "bookworm", ""),
        Source("https://mirror.example/security", "bookworm-security", KEY),
    ]


def test_deb822_entries_are_read() -> None:
    text = f"""Types: deb deb-src
# the host's mirror
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: {KEY}

Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb
URIs: http://inline.example/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""
    assert parse_deb822(text) == [
        Source("http://mirror.example/debian", "trixie", KEY),
        Source("http://mirror.example/debian", "trixie-updates", KEY),
        Source("http://inline.example/debian", "trixie", ""),
    ]


def test_another_suite_comes_from_the_same_servers() -> None:
    host = [
        Source("http://mirror.example/debian", "bookworm", KEY),
        Source("http://mirror.example/debian", "bookworm-updates", KEY),
        Source("http://mirror.example/security", "bookworm-security", KEY),
        Source("http://mirror.example/debian", "bookworm-backports", KEY),
        Source("http://third.example", "bookworm", "/etc/apt/keyrings/third.gpg"),
        Source("http://other.example", "nodistro", ""),
    ]
    assert [(source.uri, source.suite) for source in derive(host, "trixie")] == [
        ("http://mirror.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("http://mirror.example/security", "trixie-security"),
    ]


def test_debians_keyring_is_used_where_an_entry_names_none() -> None:
    assert derive([Source("http://mirror.example", "stable", "")], "bookworm", "", KEY) == [
        Source("http://mirror.example", "bookworm", KEY)
    ]


def test_a_mirror_replaces_the_hosts_entries() -> None:
    host = [Source("http://archive.example/ubuntu", "noble", "")]
    assert derive(host, "bookworm") == []
    assert derive(host, "bookworm", "http://mirror.example/debian", KEY) == [
        Source("http://mirror.example/debian", "bookworm", KEY)
    ]


def test_entries_whose_lists_did_not_come_are_left_out() -> None:
    sources = [Source("http://m", "trixie", ""), Source("http://m", "trixie-updates", "")]
    assert usable(sources, ["m_dists_trixie_main_binary-amd64_Packages.lz4"], "amd64") == sources[:1]


def test_of_the_hosts_apt_settings_only_the_way_to_the_archive_is_taken() -> None:
    dump = 'Acquire::http::Proxy "http://proxy:3128";\nDPkg::Post-Invoke:: "rm -rf /";\nAcquire::Languages "de";\nAcquire::Retries "5";\n'
    assert network_settings(dump) == 'Acquire::http::Proxy "http://proxy:3128";\nAcquire::Retries "5";\n'
