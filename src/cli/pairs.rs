//! `-o key=value,flag,…`: words into pairs. What they mean is decided in `config::options`.

/// The pairs of all `-o` arguments in order. A comma ends a pair; `\,` is a comma in a value. A word
/// without `=` is a flag, as in `-o ro`.
pub(super) fn split(arguments: &[String]) -> Vec<(String, String)> {
    arguments
        .iter()
        .flat_map(|argument| words(argument))
        .map(|word| pair(&word))
        .collect()
}

fn words(argument: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = argument.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\\', Some(',')) => {
                characters.next();
                push(&mut words, ',');
            }
            (',', _) => words.push(String::new()),
            _ => push(&mut words, character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn push(words: &mut [String], character: char) {
    if let Some(word) = words.last_mut() {
        word.push(character);
    }
}

fn pair(word: &str) -> (String, String) {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    (key.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn pairs_are_split_at_commas_that_are_not_escaped() {
        for (arguments, pairs) in [
            (
                &["a=1,b=2", "ro"][..],
                owned(&[("a", "1"), ("b", "2"), ("ro", "")]),
            ),
            (
                &["prefix=a\\,b,x=="],
                owned(&[("prefix", "a,b"), ("x", "=")]),
            ),
            (&[",,a=,"], owned(&[("a", "")])),
            (&["path=c:\\dir\\"], owned(&[("path", "c:\\dir\\")])),
            (&[""], vec![]),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
            assert_eq!(split(&arguments), pairs, "{arguments:?}");
        }
    }

    proptest! {
        #[test]
        fn no_argument_makes_it_panic(arguments in proptest::collection::vec(any::<String>(), 0..4)) {
            let _ = split(&arguments);
        }
    }
}
