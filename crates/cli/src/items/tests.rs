use super::*;

/// Ids and bits of a file, or what is wrong with it.
fn read_by(columns: &Columns, bytes: &[u8]) -> Result<(Option<Vec<String>>, Vec<u8>), String> {
    let read = || {
        let table = columns.parse(bytes, "f.csv")?;
        Ok((columns.ids(&table)?, columns.bits(&table, "label")?))
    };
    read().map_err(|error: CliError| error.to_string())
}

fn read(bytes: &[u8]) -> Result<(Option<Vec<String>>, Vec<u8>), String> {
    read_by(&Columns::default(), bytes)
}

fn ab() -> Option<Vec<String>> {
    Some(vec!["a".to_owned(), "b".to_owned()])
}

#[track_caller]
fn refused(columns: &Columns, bytes: &[u8], parts: &[&str]) {
    let error = read_by(columns, bytes).expect_err("refused");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn every_export_of_the_same_table_reads_the_same() {
    for text in [
        "id,label\na,1\nb,0\n",
        "id,label\na,1\nb,0",
        "id,label\r\na,1\r\nb,0\r\n",
        "id,label\ra,1\rb,0\r",
        "\u{feff}id,label\na,1\nb,0\n",
        "\u{feff}id;label\r\na;1\r\nb;0\r\n",
        "id\tlabel\na\t1\nb\t0\n",
        "sep=;\nid;label\na;1\nb;0\n",
        "\"sep=|\"\nid|label\na|1\nb|0\n",
        "\"id\",\"label\"\n\"a\",\"1\"\n\"b\",\"0\"\n",
        " id , label \n a , 1 \n b , 0 \n",
        "ID,Label\na,1\nb,0\n",
        "item,target\na,1\nb,0\n",
        "y,item\n1,a\n0,b\n",
        "item,prediction\na,1\nb,0\n",
        ",id,label\n0,a,1\n1,b,0\n",
        "Unnamed: 0;id;label\n0;a;1\n1;b;0\n",
        "id,note,label\na,\"x, y\",1\nb,z,0\n",
        "id;score;label\na;0,5;1\nb;0,7;0\n",
        "id,label\n\na,1\n\nb,0\n,\n",
        "id,label\na,1.0\nb,0.00\n",
        "id,label\na,True\nb,FALSE\n",
    ] {
        assert_eq!(read(text.as_bytes()), Ok((ab(), vec![1, 0])), "{text:?}");
    }
}

#[test]
fn a_delimiter_that_is_no_comma_and_a_left_out_index_are_said() {
    let notes = |text: &str| {
        Columns::default()
            .parse(text.as_bytes(), "f")
            .expect("a table")
            .notes
    };
    assert!(notes("id,label\na,1\n").is_empty());
    assert!(notes("id;label\na;1\n")[0].contains("semicolons"));
    assert!(notes(",id,label\n0,a,1\n")[0].contains("left out"));
}

#[test]
fn a_nameless_column_that_does_not_count_the_rows_stays() {
    let columns = Columns {
        id_column: Some(String::new()),
        ..Columns::default()
    };
    let text = b",label\n7,1\n9,0\n";
    let ids = Some(vec!["7".to_owned(), "9".to_owned()]);
    assert_eq!(read_by(&columns, text), Ok((ids, vec![1, 0])));
}

#[test]
fn columns_may_be_named() {
    let columns = |id: &str, label: &str| Columns {
        id_column: Some(id.to_owned()),
        label_column: Some(label.to_owned()),
        ..Columns::default()
    };
    let text = b"patient;label;gold\na;0;1\nb;0;0\n";
    assert_eq!(
        read_by(&columns("patient", "gold"), text),
        Ok((ab(), vec![1, 0]))
    );
    assert_eq!(
        read_by(&columns("Patient", "GOLD"), text),
        Ok((ab(), vec![1, 0]))
    );
    refused(
        &columns("patient", "golden"),
        text,
        &["\"golden\"", "\"gold\""],
    );
    refused(
        &columns("who", "what"),
        b"a,1\nb,0\n",
        &["\"who\"", "first line is \"a\", \"1\""],
    );
    let two = b"id,label,prediction\na,1,0\nb,0,1\n";
    refused(
        &Columns::default(),
        two,
        &["\"label\", \"prediction\"", "--label-column"],
    );
    let twice = b"id,label,label\na,1,0\nb,0,1\n";
    refused(&columns("id", "label"), twice, &["\"label\", \"label\""]);
    refused(
        &Columns::default(),
        b"id,diagnosis\na,1\n",
        &["labels", "\"diagnosis\"", "--label-column"],
    );
}

#[test]
fn cells_are_mapped_as_the_map_says_and_no_other_way() {
    let columns = Columns {
        map: vec![
            ("malignant".to_owned(), 1),
            ("benign".to_owned(), 0),
            ("y".to_owned(), 1),
        ],
        ..Columns::default()
    };
    let text = b"id,label\na,malignant\nb,benign\n";
    assert_eq!(read_by(&columns, text), Ok((ab(), vec![1, 0])));
    // The first line is a label, and not the name of a column.
    assert_eq!(read_by(&columns, b"y\nbenign\n"), Ok((None, vec![1, 0])));
    refused(
        &columns,
        b"id,label\na,Malignant\n",
        &["line 2", "Malignant=1"],
    );
    refused(&columns, b"id,label\na,1\n", &["line 2", "\"1\""]);
    refused(
        &Columns::default(),
        text,
        &[
            "line 2",
            "\"malignant\" (1 times)",
            "--map benign=1,malignant=0",
        ],
    );
}

#[test]
fn a_map_on_the_command_line_is_cells_and_bits() {
    let pair = values::pair;
    assert_eq!(pair("malignant=1"), Ok(("malignant".to_owned(), 1)));
    assert_eq!(pair("a=b=0"), Ok(("a=b".to_owned(), 0)));
    for wrong in ["malignant", "malignant=2", "malignant=", "=", ""] {
        assert!(pair(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn scores_are_cut_at_the_threshold() {
    let columns = Columns {
        threshold: Some(0.5),
        ..Columns::default()
    };
    let text = b"id,label\na,0.5\nb,0.49999\n";
    assert_eq!(read_by(&columns, text), Ok((ab(), vec![1, 0])));
    assert_eq!(read_by(&columns, b"1e3\n-1\n"), Ok((None, vec![1, 0])));
    for cell in ["nan", "inf", "high", "0,5"] {
        let text = format!("id;label\na;{cell}\n");
        refused(
            &columns,
            text.as_bytes(),
            &["line 2", "needs a number", cell],
        );
    }
    let scores = b"id,label\na,0.9\nb,0.1\nc,0.4\n";
    for scores in [&scores[..], b"id,label\na,0.9\nb,0.1\n"] {
        refused(&Columns::default(), scores, &["line 2", "--threshold 0.5"]);
    }
    let classes = b"id,label\na,1\nb,2\n";
    refused(&Columns::default(), classes, &["line 3", "--map 1=1,2=0"]);
}

#[test]
fn no_other_number_is_a_bit() {
    for cell in [
        "2", "-1", "01", "+1", "1.", ".0", "1.01", "1e0", "yes", "t", "None", "NaN",
    ] {
        refused(
            &Columns::default(),
            format!("id,label\na,{cell}\n").as_bytes(),
            &["line 2", cell],
        );
    }
}

#[test]
fn what_is_no_utf8_text_is_named_with_its_remedy() {
    let plain = Columns::default();
    let utf16 = |bytes: fn(u16) -> [u8; 2], mark: &str| {
        let text = format!("{mark}id,label\na,1\n");
        text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()
    };
    for bytes in [
        utf16(u16::to_le_bytes, "\u{feff}"),
        utf16(u16::to_be_bytes, "\u{feff}"),
        utf16(u16::to_le_bytes, ""),
        utf16(u16::to_be_bytes, ""),
    ] {
        refused(&plain, &bytes, &["f.csv is UTF-16", "iconv"]);
    }
    refused(
        &plain,
        b"id,label\na,1\nM\xfcller,0\n",
        &["line 3", "0xfc", "WINDOWS-1252"],
    );
    refused(&plain, b"PK\x03\x04rest", &["xlsx", "export it as CSV"]);
    refused(&plain, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", &["xls"]);
    refused(&plain, b"PAR1....", &["Parquet"]);
    refused(&plain, b"id,label\na,1\n\0,0\n", &["NUL"]);
}

#[test]
fn a_file_that_gzip_compressed_is_unpacked() {
    let compressed = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).expect("memory");
        encoder.finish().expect("memory")
    };
    let whole = compressed("id,label\na,1\n");
    let unpacked = text::unpacked(whole.clone(), 100, "f.csv.gz").expect("intact");
    assert_eq!(unpacked, b"id,label\na,1\n");
    // Two members are one file, as `cat a.gz b.gz` makes it.
    let twice = [whole.clone(), compressed("b,0\n")].concat();
    let unpacked = text::unpacked(twice, 100, "f.csv.gz").expect("intact");
    assert_eq!(unpacked, b"id,label\na,1\nb,0\n");
    let half = whole[..whole.len() - 6].to_vec();
    let cut = text::unpacked(half, 100, "f.csv.gz").expect_err("cut");
    assert!(cut.to_string().contains("damaged"), "{cut}");
    let bomb = text::unpacked(compressed(&"0\n".repeat(100_000)), 1_000, "f.csv.gz");
    let bomb = bomb.expect_err("too long").to_string();
    assert!(bomb.contains("more than 1000 bytes"), "{bomb}");
}

#[test]
fn ids_that_differ_in_their_unicode_form_alone_are_named() {
    let plain = Columns::default();
    let two = "id,label\nMu\u{308}ller,1\nM\u{fc}ller,0\n";
    refused(
        &plain,
        two.as_bytes(),
        &["line 3", "line 2", "Unicode form"],
    );
    let other = "id,label\nMuller,1\nM\u{fc}ller,0\n";
    plain
        .parse(other.as_bytes(), "f.csv")
        .and_then(|table| plain.ids(&table))
        .expect("two items");
}

#[test]
fn what_does_not_fit_is_told_with_its_line() {
    let plain = Columns::default();
    refused(&plain, b"", &["is empty"]);
    refused(&plain, b"\xef\xbb\xbf\r\n", &["is empty"]);
    refused(&plain, b"id,label\n", &["nothing below"]);
    refused(&plain, b"id,label\na,1\nb\n", &["line 3", "1 cells"]);
    refused(
        &plain,
        b"id,label\na,1\nb,0,0\n",
        &["line 3", "3 cells", "quotes"],
    );
    refused(&plain, b"id,label\n\"a,1\nb,0\n", &["line 2", "quote"]);
    refused(
        &plain,
        b"id,label\na,1\na,0\n",
        &["line 3", "line 2", "\"a\""],
    );
    refused(&plain, b"id,label\n,1\n", &["line 2", "id is empty"]);
    refused(&plain, b"id,label\r\na,\r\n", &["line 2", "label is empty"]);
    let unusual = ["line 1", "\"patient\", \"score\"", "--label-column"];
    refused(&plain, b"patient\tscore\na\t0.5\n", &unusual);
    refused(&plain, b"score\n1\n", &["line 1", "--label-column"]);
    refused(&plain, b"sep=;;\nid;label\n", &["line 1"]);
    refused(&plain, b"sep=;\r\nid;label\r\na;2\r\n", &["line 3"]);
}
