//! The labels of a name as text in lower case, without a heap for each. In: a name. Out: its labels, most specific first.

use hickory_proto::rr::Name;

/// A name has at most this many bytes.
const MAX_BYTES: usize = Name::MAX_LENGTH;
/// A name of ours has at most this many labels; PTR names are read elsewhere.
const MAX_LABELS: usize = 32;

/// The labels of a name.
pub(crate) struct Labels {
    bytes: [u8; MAX_BYTES],
    ends: [u8; MAX_LABELS],
    count: usize,
}

impl Labels {
    /// `None` for what no object of Kubernetes can be called: bytes that are no ASCII text, or too many labels.
    pub fn of(name: &Name) -> Option<Self> {
        let mut this = Self { bytes: [0; MAX_BYTES], ends: [0; MAX_LABELS], count: 0 };
        let mut end = 0;
        for label in name.iter() {
            let place = this.bytes.get_mut(end..end + label.len())?;
            place.copy_from_slice(label);
            place.make_ascii_lowercase();
            if !place.is_ascii() {
                return None;
            }
            end += label.len();
            *this.ends.get_mut(this.count)? = u8::try_from(end).ok()?;
            this.count += 1;
        }
        Some(this)
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &str> {
        (0..self.count).map(|i| {
            let begin = if i == 0 { 0 } else { usize::from(self.ends[i - 1]) };
            std::str::from_utf8(&self.bytes[begin..usize::from(self.ends[i])]).unwrap_or_default()
        })
    }

    /// The labels in front of an origin; `None` when the name is not below it, or far below.
    pub fn before(&self, origin: &Self) -> Option<Vec<&str>> {
        let split = self.count.checked_sub(origin.count)?;
        let all: Vec<&str> = self.iter().collect();
        let below = all.iter().skip(split).copied().eq(origin.iter());
        below.then(|| all[..split].to_vec())
    }
}
