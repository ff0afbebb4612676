//! Waiting for a condition: look, pause shortly, look again, give up after a bound.

use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(25);
/// A look that asks hosts takes a good part of a core, and many tests wait at the same time: the pause is three times as long as the look.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Looks until `look` yields a value; `None` once `bound` has passed.
pub fn wait_for<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + bound;
    loop {
        let begins = Instant::now();
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep((3 * begins.elapsed()).clamp(PAUSE, LONGEST_PAUSE));
    }
}

/// Looks until `holds` says yes; `false` once `bound` has passed.
pub fn wait_until(bound: Duration, mut holds: impl FnMut() -> bool) -> bool {
    wait_for(bound, || holds().then_some(())).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_first_yes_and_gives_up_after_the_bound() {
        let mut looks = 0;
        assert!(wait_until(Duration::from_secs(60), || {
            looks += 1;
            looks == 3
        }));
        assert_eq!(looks, 3);
        assert!(!wait_until(Duration::ZERO, || false));
    }
}
