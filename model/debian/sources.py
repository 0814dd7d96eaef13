"""The packages that have text, and what reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from model.debian.descriptions import descriptions
from model.debian.dictionary import example_sentences, phrases, words
from model.debian.manuals import manuals
from model.debian.messages import catalogues, json_messages
from model.debian.pages import pages
from model.debian.texts import Texts


class Source(NamedTuple):
    """Where a part of the corpus comes from."""

    read: Callable[[Path], Texts]
    """From the folder in which the packages are unpacked."""
    packages: str
    """Names, parted by spaces; without any, apt's indices of descriptions."""


_ENGLISH_PAGES = (
    "bash bind9-dnsutils bsdmainutils bsdutils coreutils cpio cron curl diffutils e2fsprogs fdisk file "
    "findutils gnupg gpg gpg-agent grep groff gzip iproute2 iputils-ping less login logrotate lsof man-db mount mutt "
    "nano net-tools openssl passwd procps psmisc rsync samba-common-bin sed smbclient sudo systemd systemd-container "
    "tar tcpdump udev util-linux vim-common wget xz-utils zip"
)
"""Packages whose manual pages manpages-de translates, beside those of manpages."""
SOURCES = {
    "ddtp": Source(descriptions, ""),
    "manpages": Source(manuals, f"manpages manpages-dev manpages-de manpages-de-dev {_ENGLISH_PAGES}"),
    "po4a-man": Source(manuals, "dpkg dpkg-dev debhelper devscripts apt apt-utils"),
    "libreoffice-help": Source(pages, "libreoffice-help-common libreoffice-help-de libreoffice-help-en-us"),
    "libreoffice-ui": Source(catalogues, "libreoffice-l10n-de"),
    "ding-sent": Source(example_sentences, "trans-de-en"),
    "ding-phrase": Source(phrases, "trans-de-en"),
    "ding": Source(words, "trans-de-en"),
    "wesnoth": Source(catalogues, "wesnoth-1.16-data"),
    "cataclysm": Source(catalogues, "cataclysm-dda-data"),
    "apt-dpkg-ui": Source(catalogues, "apt dpkg dpkg-dev"),
    "gimp-help": Source(pages, "gimp-help-de gimp-help-en"),
    "gimp-ui": Source(catalogues, "gimp-data libgimp2.0"),
    "debian-handbook": Source(pages, "debian-handbook"),
    "debian-docs-small": Source(
        pages, "debian-faq debian-faq-de harden-doc maint-guide maint-guide-de debmake-doc live-manual-html"
    ),
    "debian-reference": Source(pages, "debian-reference-en debian-reference-de"),
    "developers-reference": Source(pages, "developers-reference developers-reference-de"),
    "installation-guide": Source(pages, "installation-guide-amd64"),
    "freeciv": Source(catalogues, "freeciv-data"),
    "git": Source(catalogues, "git"),
    "inkscape": Source(catalogues, "inkscape"),
    "gnucash": Source(catalogues, "gnucash-common"),
    "mediawiki": Source(json_messages, "mediawiki"),
    "wordpress": Source(catalogues, "wordpress-l10n"),
    "gcc-binutils-coreutils": Source(catalogues, "gcc-12-locales binutils-common coreutils"),
    "gnome-user-docs": Source(pages, "gnome-user-docs"),
}
"""By origin. Left out of what the first models were trained on: OpenTTD (compiled) and other releases' descriptions."""
