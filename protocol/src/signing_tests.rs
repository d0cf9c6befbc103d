use super::*;

/// RFC 8032, section 7.1, tests 1 to 3: seed, public key, message, signature.
const RFC_8032: [[&str; 4]; 3] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
         5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
         18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
];

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).expect("hexadecimal").try_into().expect("its length")
}

#[test]
fn the_vectors_of_the_rfc_hold() {
    for [seed, public, message, signature] in RFC_8032 {
        let key = SigningKey::from_seed(&bytes(seed));
        let (message, signature) = (hex::decode(message).expect("hex"), bytes(signature));
        assert_eq!(key.public().as_bytes(), &bytes(public));
        assert_eq!(key.sign(&message), signature);
        assert!(key.public().has_signed(&message, &signature));
        assert!(!key.public().has_signed(b"another", &signature));
    }
}

/// The same signature with the group's order added to its scalar: a lax verifier takes both.
#[test]
fn a_signature_has_one_spelling() {
    let order: [u8; 32] = bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    for [_, public, message, signature] in RFC_8032 {
        let public = PublicKey::from_bytes(&bytes(public)).expect("valid");
        let mut other: [u8; 64] = bytes(signature);
        let mut carry = 0;
        for (digit, add) in other[32..].iter_mut().zip(order) {
            let sum = u16::from(*digit) + u16::from(add) + carry;
            *digit = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        assert_eq!(carry, 0, "it still fits");
        assert!(!public.has_signed(&hex::decode(message).expect("hex"), &other));
    }
}

/// For such keys, signatures over anything can be made without a private key.
#[test]
fn keys_of_small_order_and_second_spellings_are_refused() {
    for (key, wanted) in [
        ("0100000000000000000000000000000000000000000000000000000000000000", "small order"),
        ("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "small order"),
        ("0000000000000000000000000000000000000000000000000000000000000000", "small order"),
        ("0000000000000000000000000000000000000000000000000000000000000080", "small order"),
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "small order"),
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85", "small order"),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "small order"),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa", "small order"),
        ("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "small order"),
        ("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "small order"),
        // y = p + 3, which is the point of y = 3.
        ("f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "no point"),
        ("0200000000000000000000000000000000000000000000000000000000000000", "no point"),
    ] {
        let error = PublicKey::from_bytes(&bytes(key)).expect_err(key).to_string();
        assert!(error.contains(wanted), "{key}: {error}");
    }
    let three = "0300000000000000000000000000000000000000000000000000000000000000";
    PublicKey::from_bytes(&bytes(three)).expect("an ordinary point");
}

#[test]
fn a_public_key_survives_its_text_and_its_id_can_be_checked_by_hand() {
    let public = key(7).public();
    let text = public.to_string();
    assert_eq!(text, "ed25519:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=");
    assert_eq!(PublicKey::try_from(text.as_str()), Ok(public));
    assert_eq!(public.id(), Digest::of(text.as_bytes()));
    for wrong in [
        "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=",
        "ed25519:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw",
        "ed25519:6kps",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOpKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs",
        "",
    ] {
        let error = PublicKey::try_from(wrong).expect_err(wrong);
        assert!(matches!(error, KeyError::Text(_)), "{wrong}: {error}");
    }
}

/// Made by `openssl genpkey -algorithm ed25519` and `… EC -pkeyopt ec_paramgen_curve:P-256`.
const OPENSSL: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINpG69MgDJf0Cza3gB1BbZuQFfTnUqHtDPsjl995Z0Zw\n\
    -----END PRIVATE KEY-----\n";
const ELLIPTIC: &str = "-----BEGIN PRIVATE KEY-----\n\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgTM0x72fA/HgQEbBZ\n\
    6tgoRT2odAXgr4ctcsrJAZ161a6hRANCAAT9fuNb0oUQcMUTltwL6Zc51BT0BJHR\n\
    CCKo+9GViEKIffruaQxtpjHAvpUWjxuhwNY+ry2CquTmVV5IoMT8nx2q\n\
    -----END PRIVATE KEY-----\n";

#[test]
fn a_private_key_is_that_of_openssl_and_back() {
    let key = SigningKey::from_pem(OPENSSL).expect("OpenSSL's");
    assert_eq!(key.public().to_string(), "ed25519:LqefmAMHOrStqVx4Xc75peYwF5Xthw3P4xgaV7etyH4=");
    assert_eq!(key.to_pem().as_ref(), OPENSSL);
    assert_eq!(
        SigningKey::from_pem(&format!("\n{OPENSSL}")).expect("the same").to_pem().as_ref(),
        OPENSSL
    );
    assert!(!format!("{key:?}").contains("2kbr"), "{key:?}");

    let sealed =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGbMFcG\n-----END ENCRYPTED PRIVATE KEY-----";
    let openssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----";
    let cut = &OPENSSL[..60];
    for (pem, wanted) in [
        ("", KeyError::NotPem),
        ("secret", KeyError::NotPem),
        (cut, KeyError::NotPem),
        (&OPENSSL.replace("MC4C", "MC5C"), KeyError::NotPem),
        (ELLIPTIC, KeyError::OtherAlgorithm),
        (sealed, KeyError::Encrypted),
        (openssh, KeyError::OpenSsh),
    ] {
        assert_eq!(SigningKey::from_pem(pem).expect_err(pem), wanted, "{pem}");
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn name(raw: &str) -> SignerName {
    SignerName::try_from(raw.to_owned()).expect("valid")
}

fn signer(raw: &str, seed: u8) -> Signer {
    Signer { name: name(raw), key: key(seed).public() }
}

fn signed_by(seeds: &[u8]) -> Envelope {
    let mut envelope = Envelope::unsigned(b"{}".to_vec());
    for seed in seeds {
        envelope.sign(&key(*seed));
    }
    envelope
}

#[test]
fn signers_that_mean_nothing_clear_are_refused() {
    let (ann, bob) = (signer("ann", 1), signer("bob", 2));
    for (threshold, signers, wanted) in [
        (1, vec![], "without any key"),
        (0, vec![ann.clone()], "threshold 0 of 1"),
        (2, vec![ann.clone()], "threshold 2 of 1 signers cannot be: 1 to 1"),
        (1, vec![ann.clone(), signer("ann", 3)], "two signers are called ann"),
        (2, vec![ann.clone(), bob, signer("zoe", 1)], "ann and zoe have the same key"),
        (1, vec![ann; SIGNERS_MAX + 1], "more than"),
    ] {
        let error = Signers::new(threshold, signers).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    for bad in ["", "a b", "a\nb", "ä", &"x".repeat(65)] {
        SignerName::try_from(bad.to_owned()).expect_err(bad);
    }
}

#[test]
fn enough_distinct_signers_have_to_sign() {
    let all = vec![signer("ann", 1), signer("bob", 2), signer("cid", 3)];
    let one = Signers::new(1, all.clone()).expect("valid");
    let two = Signers::new(2, all).expect("valid");

    let mut twice = signed_by(&[1]);
    twice.signatures.push(twice.signatures[0].clone());
    let mut copied = signed_by(&[]);
    copied.payload = b"[]".to_vec();
    copied.signatures = signed_by(&[1]).signatures;
    let mut retyped = signed_by(&[1]);
    retyped.payload_type.push('x');
    let mut altered = signed_by(&[1, 2]);
    altered.payload = b"{ }".to_vec();
    let mut claimed = signed_by(&[9]);
    claimed.signatures[0].keyid = key(1).public().id().to_string();
    let mut short = signed_by(&[1]);
    short.signatures[0].sig.pop();
    let mut one_wrong = signed_by(&[1, 2]);
    one_wrong.signatures[1].sig[5] ^= 1;
    let mut named_oddly = signed_by(&[1]);
    named_oddly.signatures[0].keyid = "ann".into();

    let invalid = "error: the signature of ann is not one over this order: it was altered, or signed by another key";
    let stranger = format!(
        "error: it is signed by {} only, which is no signer's key",
        key(9).public().id().short()
    );
    for (what, envelope, of_one, of_two) in [
        ("by nobody", signed_by(&[]), "error: nobody has signed it", "error: nobody has signed it"),
        (
            "by one",
            signed_by(&[1]),
            "ann",
            "error: it is signed by ann only, and 2 signers have to",
        ),
        ("by two", signed_by(&[3, 1]), "ann cid", "ann cid"),
        (
            "by one and a stranger",
            signed_by(&[9, 2]),
            "bob",
            "error: it is signed by bob only, and 2 signers have to",
        ),
        ("by a stranger", signed_by(&[9]), &stranger, &stranger),
        ("twice by one", twice, "ann", "error: it is signed by ann only, and 2 signers have to"),
        ("signature of another order", copied, invalid, invalid),
        ("altered type", retyped, invalid, invalid),
        ("altered payload", altered, invalid, invalid),
        ("under another's name", claimed, invalid, invalid),
        (
            "cut",
            short,
            "error: the signature of ann has 63 bytes instead of 64",
            "error: the signature of ann has 63 bytes instead of 64",
        ),
        (
            "one of two wrong",
            one_wrong,
            "error: the signature of bob is not one over this order: it was altered, or signed by another key",
            "error: the signature of bob is not one over this order: it was altered, or signed by another key",
        ),
        (
            "key id of another kind",
            named_oddly,
            "error: it is signed by \"ann\" only, which is no signer's key",
            "error: it is signed by \"ann\" only, which is no signer's key",
        ),
    ] {
        for (signers, wanted) in [(&one, of_one), (&two, of_two)] {
            let found = match signers.verify(&envelope) {
                Ok(names) => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                Err(error) => format!("error: {error}"),
            };
            assert_eq!(found, wanted, "{what}, {} of 3", signers.threshold());
        }
    }
}

#[test]
fn a_second_signature_of_one_key_replaces_its_first() {
    let mut envelope = signed_by(&[1, 2, 1]);
    assert_eq!(envelope.signatures.len(), 2);
    envelope.payload.push(b' ');
    envelope.sign(&key(1));
    assert_eq!(envelope.signatures.len(), 2);
}

proptest::proptest! {
    /// Whatever one byte is changed to, anywhere in what is signed or in the signature.
    #[test]
    fn no_changed_byte_goes_unnoticed(place in 0usize..200, to: u8) {
        let signers = Signers::only(name("ann"), key(1).public());
        let mut envelope = Envelope::unsigned(b"{\"group\":\"delay\",\"generation\":4}".to_vec());
        envelope.sign(&key(1));
        let honest = envelope.clone();
        let (payload, sig) = (envelope.payload.len(), 64);
        let place = place % (payload + sig + envelope.payload_type.len());
        if place < payload {
            envelope.payload[place] = to;
        } else if place < payload + sig {
            envelope.signatures[0].sig[place - payload] = to;
        } else {
            let place = place - payload - sig;
            envelope.payload_type.replace_range(place..=place, &char::from(to & 0x7f).to_string());
        }
        proptest::prop_assert_eq!(signers.verify(&envelope).is_ok(), envelope == honest);
    }
}
