//! TiUP's numbers of audit entries: digits and consonants, most significant first.
//!
//! Facts: tiup pkg/base52: 51 symbols in spite of its name.

const SYMBOLS: &[u8] = b"0123456789bcdfghjkmnpqrstvwxyzBCDFGHJKLMNPQRSTVWXYZ";

pub(crate) fn encode(mut number: u64) -> String {
    let base = SYMBOLS.len() as u64;
    let mut digits = Vec::new();
    loop {
        digits.push(char::from(SYMBOLS[usize::try_from(number % base).expect("below 51")]));
        number /= base;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

pub(crate) fn decode(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0_u64, |sum, symbol| {
        let digit = SYMBOLS.iter().position(|known| *known == symbol)?;
        sum.checked_mul(SYMBOLS.len() as u64)?.checked_add(digit as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_match_those_of_tiup() {
        for number in [0, 1, 50, 51, 1_611_225_370_000_000_000, u64::MAX] {
            assert_eq!(decode(&encode(number)), Some(number));
        }
        // Of a log of 2021-01-21 10:36:10 UTC.
        assert_eq!(decode("fxgcScKJ2Kd").map(|nanos| nanos / 1_000_000_000), Some(1_611_225_370));
        for bad in ["", "a", "../x", "ZZZZZZZZZZZZZZZZZ"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
