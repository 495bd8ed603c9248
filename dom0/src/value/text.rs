//! Text that somebody else wrote: shown within bounds.

/// A child's text as one printable line of bounded length: a child may have been taken over by its guest.
pub fn one_line(text: &str) -> String {
    text.chars().take(512).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
