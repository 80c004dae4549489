//! Nothing but what was written is ever read: any bit, any cut, any other order.

use super::*;
use proptest::prelude::*;

fn key() -> Key {
    let dir = tempfile::tempdir().unwrap();
    Key::make(&dir.path().join("key")).unwrap()
}

fn about() -> About {
    About { cluster: "prod".into(), created: "2026-11-30T20:45:00Z".parse().unwrap(), program: "0.1.0".into() }
}

fn encrypt(key: &Key, plain: &[u8]) -> Vec<u8> {
    let mut writer = Encrypt::new(Vec::new(), key, &about()).unwrap();
    writer.write_all(plain).unwrap();
    writer.finish().unwrap()
}

/// All of it, or the error; whatever came before the error was right.
fn decrypt(key: &Key, bytes: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
    let mut reader = Decrypt::new(bytes, key)?;
    assert_eq!(*reader.about(), about());
    let mut read = Vec::new();
    let outcome = reader.read_to_end(&mut read);
    assert!(plain.starts_with(&read), "something was read that was not written");
    match outcome {
        Ok(_) => Ok(read),
        Err(error) => {
            assert!(reader.has_failed());
            assert!(reader.read(&mut [0]).is_err(), "once damaged, always damaged");
            Err(stream("reading")(error))
        }
    }
}

fn plain(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

#[test]
fn what_was_written_is_read_whatever_its_length() {
    let key = key();
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
        let plain = plain(length);
        let bytes = encrypt(&key, &plain);
        assert_eq!(decrypt(&key, &bytes, &plain).unwrap(), plain, "{length}");
        assert!(length < 32 || !bytes.windows(32).any(|w| w == &plain[..32]), "it is not encrypted");
    }
}

#[test]
fn two_backups_of_the_same_share_nothing() {
    let (key, plain) = (key(), plain(1000));
    let (one, other) = (encrypt(&key, &plain), encrypt(&key, &plain));
    assert_ne!(one[one.len() - 1000..], other[other.len() - 1000..]);
}

#[test]
fn another_key_is_said_to_be_another() {
    let (one, other) = (key(), key());
    let error = Decrypt::new(encrypt(&one, b"x").as_slice(), &other).map(drop).unwrap_err();
    assert!(matches!(&error, BackupError::WrongKey { needed, given }
        if *needed == one.fingerprint() && *given == other.fingerprint()));
}

#[test]
fn chunks_that_are_moved_doubled_or_left_out_are_refused() {
    let (key, plain) = (key(), plain(3 * CHUNK + 5));
    let bytes = encrypt(&key, &plain);
    let head = bytes.len() - (3 * (CHUNK + TAG) + 5 + TAG);
    let chunk = |i: usize| bytes[head + i * (CHUNK + TAG)..].iter().take(CHUNK + TAG).copied().collect::<Vec<u8>>();
    let orders: [&[usize]; 8] =
        [&[1, 0, 2, 3], &[0, 0, 1, 2, 3], &[0, 2, 3], &[0, 1, 2], &[0, 1], &[0], &[], &[0, 1, 3]];
    for order in orders {
        let mut other = bytes[..head].to_vec();
        order.iter().for_each(|i| other.extend(chunk(*i)));
        assert!(decrypt(&key, &other, &plain).is_err(), "{order:?}");
    }
    let mut longer = bytes.clone();
    longer.extend(chunk(3));
    assert!(decrypt(&key, &longer, &plain).is_err());
}

#[test]
fn chunks_of_another_backup_with_the_same_key_are_refused() {
    let (key, plain) = (key(), plain(3 * CHUNK));
    let (mut one, other) = (encrypt(&key, &plain), encrypt(&key, &plain));
    let from = one.len() - (CHUNK + TAG);
    one.truncate(from);
    one.extend(&other[from..]);
    assert!(decrypt(&key, &one, &plain).is_err());
}

#[test]
fn versions_to_come_are_named() {
    let bytes = encrypt(&key(), b"x");
    let text = String::from_utf8_lossy(&bytes[20..]).into_owned();
    let newer = text.split('}').next().unwrap().replace("\"format\":1", "\"format\":2") + "}}";
    let mut other = MAGIC.to_vec();
    other.extend(u32::try_from(newer.len()).unwrap().to_be_bytes());
    other.extend(newer.as_bytes());
    let error = Decrypt::new(other.as_slice(), &key()).map(drop).unwrap_err().to_string();
    assert!(error.contains("its format is 2"), "{error}");
}

#[test]
fn a_header_steers_no_terminal() {
    let key = key();
    for (cluster, program) in
        [("\u{1b}[2J", "0.1.0"), ("", "0.1.0"), ("../x", "0.1.0"), ("prod", "\n"), ("prod", "a b")]
    {
        let about = About { cluster: cluster.into(), program: program.into(), ..about() };
        let bytes = Encrypt::new(Vec::new(), &key, &about).unwrap().finish().unwrap();
        let error = Decrypt::new(bytes.as_slice(), &key).map(drop).unwrap_err();
        assert!(matches!(&error, BackupError::Contents(_)), "{error}");
    }
    let header = br#"{"format":1,"key":"","salt":"","about":{"cluster":"","created":"","program":"","\u001b[2J":1}}"#;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(u32::try_from(header.len()).unwrap().to_be_bytes());
    bytes.extend(header);
    let error = Decrypt::new(bytes.as_slice(), &key).map(drop).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_flipped_bit_is_noticed(length in prop_oneof![0_usize..300, CHUNK - 2..CHUNK + 300], at: prop::sample::Index, bit in 0_u8..8) {
        let (key, plain) = (key(), plain(length));
        let mut bytes = encrypt(&key, &plain);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decrypt(&key, &bytes, &plain).is_err(), "bit {bit} of byte {at}");
    }

    #[test]
    fn any_cut_is_noticed(length in prop_oneof![0_usize..300, 2 * CHUNK - 2..2 * CHUNK + 300], at: prop::sample::Index) {
        let (key, plain) = (key(), plain(length));
        let bytes = encrypt(&key, &plain);
        prop_assert!(decrypt(&key, &bytes[..at.index(bytes.len())], &plain).is_err());
    }

    #[test]
    fn anything_else_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), begin: bool) {
        let mut all = if begin { MAGIC.to_vec() } else { Vec::new() };
        all.extend(bytes);
        prop_assert!(Decrypt::new(all.as_slice(), &key()).is_err());
    }
}
