// SPDX-License-Identifier: LGPL-2.1-or-later
//! Which keys are valid.

use cuframes::protocol::runtime_dir::check_key;

use proptest::prelude::*;

use crate::config;

const KEY: &str = "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}";
const NOT_IN_A_KEY: &str = "[^A-Za-z0-9_.-]";

proptest! {
    #![proptest_config(config())]

    #[test]
    fn valid_keys_are_accepted(key in KEY) {
        prop_assert!(check_key(&key).is_ok());
    }

    #[test]
    fn keys_with_other_characters_are_refused(
        key in KEY,
        at in any::<prop::sample::Index>(),
        other in prop_oneof![NOT_IN_A_KEY, "[/\\x00 é٣]"],
    ) {
        let at = at.index(key.len());
        // It replaces a character, so that the length stays valid.
        let bad = [&key[..at], &other, &key[at + 1..]].concat();
        prop_assert!(check_key(&bad).is_err(), "{:?}", bad);
    }

    #[test]
    fn key_with_leading_dot_is_refused(rest in "[A-Za-z0-9_.-]{0,62}") {
        let bad = format!(".{rest}");
        prop_assert!(check_key(&bad).is_err());
    }

    #[test]
    fn long_keys_are_refused(key in "[A-Za-z0-9_-][A-Za-z0-9_.-]{63,200}") {
        prop_assert!(check_key(&key).is_err());
    }
}

#[test]
fn empty_key_is_refused() {
    assert!(check_key("").is_err());
}
