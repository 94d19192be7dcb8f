//! The guest's arguments.

use core::fmt;

use crate::boot::{arg_bytes, boot};

/// Returns the arguments that the operator gave this guest. Its name is not
/// among them.
#[must_use]
pub fn args() -> Args {
    Args {
        rest: arg_bytes(),
        left: boot().arg_count as usize,
    }
}

/// An iterator over the guest's arguments; see [`args`].
///
/// Displays as those that are left, with a space between each two.
#[derive(Clone, Debug)]
pub struct Args {
    rest: &'static [u8],
    left: usize,
}

impl Iterator for Args {
    type Item = &'static str;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(self.rest.len());
        let (arg, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest.get(1..).unwrap_or_default();
        // The host sends UTF-8; anything else is not worth a panic.
        Some(str::from_utf8(arg).unwrap_or_default())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Args {}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, arg) in self.clone().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            f.write_str(arg)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Args;

    fn check(rest: &'static [u8], left: usize, expected: &[&str]) {
        let args = Args { rest, left };
        assert_eq!(args.len(), expected.len());
        assert_eq!(args.to_string(), expected.join(" "));
        assert_eq!(args.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn strings_end_at_their_nul() {
        check(b"", 0, &[]);
        check(b"one\0", 1, &["one"]);
        check(b"one\0\0t\xc3\xa4o\0", 3, &["one", "", "täo"]);
    }

    #[test]
    fn what_is_missing_or_no_text_is_empty() {
        check(b"one\0", 3, &["one", "", ""]);
        check(b"\xff\0two", 2, &["", "two"]);
    }
}
