//! What a worker says: one datagram of systemd's notify protocol, sd_notify(3). Pure.
//!
//! Unknown lines are skipped, as systemd does; MAINPID is one of them, since only the keeper's own child is
//! ever believed.

/// Where a name would be needed and none is said, as systemd has it.
const UNNAMED: &str = "stored";
/// The longest name, as systemd has it.
pub(super) const NAME_MAX: usize = 255;

/// One datagram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// READY=1: it serves.
    pub(super) ready: bool,
    /// STOPPING=1: it is about to end, on purpose.
    pub(super) stopping: bool,
    /// WATCHDOG=1 or =trigger.
    pub(super) watchdog: Option<Watchdog>,
    /// What is to be done with descriptors.
    pub(super) descriptors: Descriptors<'a>,
    /// STATUS=: a line for people.
    pub(super) status: Option<&'a str>,
}

/// What a worker says about its own health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watchdog {
    /// It is alive.
    Alive,
    /// It has found out that it hangs.
    Trigger,
}

/// What is to be done with the descriptors of a datagram. Those that are not stored are closed once all
/// earlier datagrams are done with: that is what BARRIER=1 waits for, so that it needs no word here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Descriptors<'a> {
    #[default]
    None,
    /// FDSTORE=1: they are kept by this name, beside others of the same name.
    Store(&'a str),
    /// FDSTOREREMOVE=1: all of this name are let go.
    Remove(&'a str),
    /// FDSTORE=1 or FDSTOREREMOVE=1 with a name that no successor could be told.
    BadName,
}

/// Reads a datagram. Anything is a message, if only an empty one.
pub(super) fn parse(datagram: &[u8]) -> Message<'_> {
    let mut message = Message::default();
    let (mut store, mut remove, mut name) = (false, false, None);
    for line in datagram.split(|byte| *byte == b'\n') {
        match line {
            b"READY=1" => message.ready = true,
            b"STOPPING=1" => message.stopping = true,
            b"WATCHDOG=1" => message.watchdog = Some(Watchdog::Alive),
            b"WATCHDOG=trigger" => message.watchdog = Some(Watchdog::Trigger),
            b"FDSTORE=1" => store = true,
            b"FDSTOREREMOVE=1" => remove = true,
            _ => {
                if let Some(value) = line.strip_prefix(b"FDNAME=") {
                    name = Some(value);
                } else if let Some(value) = line.strip_prefix(b"STATUS=") {
                    message.status = std::str::from_utf8(value).ok();
                }
            }
        }
    }
    message.descriptors = match (remove, store, name) {
        (false, false, _) => Descriptors::None,
        // Nothing is named: nothing is removed.
        (true, _, None) => Descriptors::None,
        (false, true, None) => Descriptors::Store(UNNAMED),
        (_, _, Some(name)) => match valid_name(name) {
            None => Descriptors::BadName,
            Some(name) if remove => Descriptors::Remove(name),
            Some(name) => Descriptors::Store(name),
        },
    };
    message
}

/// A name that LISTEN_FDNAMES can carry: printable ASCII without a colon, 1 to 255 bytes.
pub(super) fn valid_name(name: &[u8]) -> Option<&str> {
    let fits = !name.is_empty()
        && name.len() <= NAME_MAX
        && name
            .iter()
            .all(|byte| (b' '..=b'~').contains(byte) && *byte != b':');
    fits.then(|| std::str::from_utf8(name).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(name: &str) -> Message<'_> {
        Message {
            descriptors: Descriptors::Store(name),
            ..Message::default()
        }
    }

    #[test]
    fn each_word_of_the_protocol_is_understood() {
        let none = Message::default();
        let ready = Message {
            ready: true,
            ..none
        };
        let table: &[(&[u8], Message<'_>)] = &[
            (b"", none),
            (b"READY=1", ready),
            (b"READY=1\n", ready),
            (b"READY=0", none),
            (b"READY=1x", none),
            (b"MAINPID=1\nREADY=1\nX_OWN=word", ready),
            (
                b"STOPPING=1",
                Message {
                    stopping: true,
                    ..none
                },
            ),
            (
                b"WATCHDOG=1",
                Message {
                    watchdog: Some(Watchdog::Alive),
                    ..none
                },
            ),
            (
                b"WATCHDOG=trigger",
                Message {
                    watchdog: Some(Watchdog::Trigger),
                    ..none
                },
            ),
            (
                b"STATUS=12 volumes",
                Message {
                    status: Some("12 volumes"),
                    ..none
                },
            ),
            (b"STATUS=\xff", none),
            (b"BARRIER=1", none),
            (b"FDSTORE=1\nFDNAME=fuse-a\nFDPOLL=0", store("fuse-a")),
            (b"FDNAME=fuse-a\nFDSTORE=1", store("fuse-a")),
            (b"FDSTORE=1", store("stored")),
            (b"FDNAME=fuse-a", none),
            (
                b"FDSTOREREMOVE=1\nFDNAME=a",
                Message {
                    descriptors: Descriptors::Remove("a"),
                    ..none
                },
            ),
            (
                b"FDSTOREREMOVE=1\nFDSTORE=1\nFDNAME=a",
                Message {
                    descriptors: Descriptors::Remove("a"),
                    ..none
                },
            ),
            (b"FDSTOREREMOVE=1", none),
            (
                b"FDSTORE=1\nFDNAME=a:b",
                Message {
                    descriptors: Descriptors::BadName,
                    ..none
                },
            ),
            (
                b"FDSTORE=1\nFDNAME=",
                Message {
                    descriptors: Descriptors::BadName,
                    ..none
                },
            ),
            (
                b"FDSTORE=1\nFDNAME=\xc3\xa4",
                Message {
                    descriptors: Descriptors::BadName,
                    ..none
                },
            ),
        ];
        for (datagram, message) in table {
            let shown = String::from_utf8_lossy(datagram);
            assert_eq!(parse(datagram), *message, "{shown:?}");
        }
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        assert!(valid_name(&[b'a'; 255]).is_some());
        assert!(valid_name(&[b'a'; 256]).is_none());
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_keeper_panic(datagram in prop::collection::vec(any::<u8>(), 0..4096)) {
            parse(&datagram);
        }

        #[test]
        fn words_in_any_order_mean_the_same(
            lines in Just(vec!["READY=1", "WATCHDOG=1", "FDSTORE=1", "FDNAME=x", "MAINPID=7", "\0=\n", "="]).prop_shuffle()
        ) {
            let datagram = lines.join("\n");
            prop_assert_eq!(parse(datagram.as_bytes()), Message {
                ready: true,
                watchdog: Some(Watchdog::Alive),
                ..store("x")
            });
        }

        #[test]
        fn a_name_that_is_stored_can_be_told_a_successor(name in prop::collection::vec(any::<u8>(), 0..300)) {
            let datagram = [b"FDSTORE=1\nFDNAME=", name.as_slice()].concat();
            if let Descriptors::Store(stored) = parse(&datagram).descriptors {
                prop_assert!(!stored.is_empty() && stored.len() <= NAME_MAX);
                prop_assert!(!stored.contains([':', '\n', '\0']));
            }
        }
    }
}
