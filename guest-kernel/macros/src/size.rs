//! Sizes as people write them.

/// Reads a size with a unit, such as `8MiB`, as KiB.
///
/// # Errors
///
/// A sentence that says what is wrong and shows a size that is right.
pub(crate) fn parse_kib(text: &str) -> Result<u32, String> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let factor = match unit.trim_start() {
        "KiB" => 1,
        "MiB" => 1024,
        "GiB" => 1024 * 1024,
        "" => {
            return Err(format!(
                "the size `{text}` needs a unit, such as `{text}KiB`"
            ));
        }
        _ => {
            return Err(format!(
                "the size `{text}` needs a number and KiB, MiB or GiB: `8MiB`"
            ));
        }
    };
    let number: u32 = digits
        .parse()
        .map_err(|_| format!("the size `{text}` needs a whole number: `8MiB`"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("the size `{text}` is above 4095 GiB"))
}

#[cfg(test)]
mod tests {
    use super::parse_kib;

    #[test]
    fn sizes_are_in_kib() {
        assert_eq!(parse_kib("256KiB"), Ok(256));
        assert_eq!(parse_kib("8 MiB"), Ok(8 * 1024));
        assert_eq!(parse_kib("2GiB"), Ok(2 * 1024 * 1024));
    }

    #[test]
    fn what_is_no_size_is_explained() {
        let cases = [
            ("", "needs a unit"),
            ("4096", "`4096KiB`"),
            ("8MB", "KiB, MiB or GiB"),
            ("1.5MiB", "KiB, MiB or GiB"),
            ("-1KiB", "KiB, MiB or GiB"),
            ("MiB", "whole number"),
            ("99999999999KiB", "whole number"),
            ("4096GiB", "above 4095 GiB"),
        ];
        for (text, part) in cases {
            let message = parse_kib(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
