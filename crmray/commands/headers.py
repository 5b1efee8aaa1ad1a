"""Names under which files have the canonical columns, in English, German, French and Spanish; the best first.

They are compared as `plain` makes them: without case, accents, spaces and marks. A language is one more line of words.
"""

from __future__ import annotations

import re
import unicodedata


def plain(name: str) -> str:
    """Small letters a-z and digits of a header: `Stück-Preis` is stuckpreis, `Straße` is strasse."""
    return re.sub(r"[^a-z0-9]", "", bare(name))


def bare(name: str) -> str:
    """In small letters, without accents."""
    return "".join(mark for mark in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(mark))


def _words(*languages: str) -> tuple[str, ...]:
    return tuple(word for words in languages for word in words.split())


_ENTITY = _words(
    "customerid custid customer accountid account userid user reviewerid clientid memberid customerno customernumber "
    "custno memberno",
    "kundennummer kundennr kundenid kundenr kdnr kunde kundin mitgliedsnummer",
    "idclient numeroclient numclient nclient noclient codeclient numerodeclient client",
    "idcliente clienteid numerocliente nrocliente ncliente codigocliente numerodecliente codigodecliente cliente",
)
_TIME = _words(
    "invoicedate orderdate effectivedate purchasedate transactiondate occurredat timestamp createddate activitydate "
    "datetime date time",
    "rechnungsdatum bestelldatum auftragsdatum kaufdatum belegdatum buchungsdatum verkaufsdatum zeitpunkt datum",
    "datefacture datedefacture datecommande datedecommande dateachat datedachat datedevente",
    "fechafactura fechadefactura fechapedido fechadepedido fechacompra fechadecompra fechaventa fechadeventa fecha",
)
_PRODUCT = _words(
    "stockcode productid sku itemid asin product2id",
    "artikelnummer artikelnr artikelid produktnummer produktid",
    "codeproduit idproduit refproduit codearticle idarticle",
    "codigoproducto idproducto codigoarticulo idarticulo",
)
_PRICE = _words(
    "unitprice price unitpriceamount",
    "einzelpreis stuckpreis stueckpreis preis",
    "prixunitaire prix",
    "preciounitario precio",
)
_CHANNEL = _words("channel", "kanal vertriebskanal", "canal")  # the last is Spanish, too
_COUNTRY = _words("country billingcountry", "land", "pays", "pais")
_INDUSTRY = _words("industry", "branche", "secteur", "sector")

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "transactions": {
        "entity_id": _ENTITY,
        "occurred_at": _TIME,
        "order_id": _words(
            "invoiceno invoice orderid ordernumber orderno order basketid receiptid",
            "rechnungsnummer rechnungsnr bestellnummer bestellnr auftragsnummer auftragsnr belegnummer belegnr "
            "rechnung bestellung auftrag beleg",
            "numerofacture numerodefacture nfacture ncommande numerocommande numerodecommande nocommande "
            "idcommande commande facture",
            "numerofactura numerodefactura nfactura npedido numeropedido numerodepedido idpedido pedido factura",
        ),
        "product_id": _PRODUCT + _words(
            "product item article articleno", "artikel produkt", "produit", "producto articulo"
        ),
        "num_units": _words(
            "quantity qty units numunits", "menge stuckzahl stueckzahl anzahl", "quantite qte", "cantidad unidades"
        ),
        "unit_price_amount": _PRICE,
        "net_amount": _words(
            "netamount amount total totalprice sales linetotal revenue",
            "nettobetrag betrag umsatz gesamtpreis gesamtbetrag summe",
            "montantht montant montanttotal chiffredaffaires",
            "importeneto importe importetotal monto ventas",
        ),
        "channel": _CHANNEL,
    },
    "interactions": {
        "entity_id": _ENTITY,
        "occurred_at": _TIME,
        "channel": (*_CHANNEL, "origin"),
        "subject": _words("subject title summary", "betreff titel", "sujet objet", "asunto"),
        "text": _words(
            "text body textbody description reviewtext comment message",
            "bewertungstext nachricht kommentar beschreibung anliegen",
            "texte commentaire avis",
            "texto mensaje comentario resena descripcion",
        ),
        "rating": _words(
            "rating stars overall score", "bewertung sterne", "notation", "puntuacion calificacion valoracion"
        ),
        "status": _words("status", "statut", "estado"),
    },
    "products": {
        "product_id": (*_PRODUCT, "id"),
        "name": _words(
            "name productname title description",
            "artikelname artikelbezeichnung produktname bezeichnung",
            "nomproduit nomduproduit libelle designation",
            "nombreproducto nombredelproducto descripcion",
        ),
        "category": _words(
            "category family department",
            "kategorie warengruppe produktgruppe",
            "categorie famille",
            "categoria familia",
        ),
        "brand": _words("brand", "marke", "marque", "marca"),
        "price_amount": _PRICE + _words("listprice", "listenpreis verkaufspreis"),
    },
    "customers": {
        "entity_id": (*_ENTITY, "id"),
        "created_at": _words(
            "createddate createdat signupdate joined since",
            "kundeseit seit angelegtam erstelltam registriertam anmeldedatum",
            "datecreation datedecreation dateinscription datedinscription clientdepuis depuis",
            "fechaalta fechadealta fecharegistro fechaderegistro clientedesde desde",
        ),
        "country": _COUNTRY,
        "region": _words("region state billingstate", "bundesland", "provincia"),
        "industry": _INDUSTRY,
        "segment": _words("segment", "kundensegment", "segmento"),
    },
    "leads": {
        "lead_id": _words("leadid leadno leadnumber lead"),
        "created_at": _words(
            "createddate createdat created date", "angelegtam erstelltam datum", "datecreation", "fechacreacion fecha"
        ),
        "converted_at": _words(
            "converteddate convertedat conversiondate", "konvertiertam konvertierungsdatum", "dateconversion",
            "fechaconversion",
        ),
        "source": _words("leadsource source", "quelle herkunft", "origine", "origen fuente"),
        "industry": _INDUSTRY,
        "country": _COUNTRY,
        "status": _words("status", "statut", "estado"),
    },
}  # fmt: skip
REQUIRED = {
    "transactions": {"entity_id", "occurred_at"},
    "interactions": {"entity_id", "occurred_at", "text"},
    "products": {"product_id", "name"},
    "customers": {"entity_id"},
    "leads": {"lead_id", "created_at", "converted_at"},
}
CHURNED = _words(
    "churn churned exited attrition attrited left target label",
    "gekundigt gekuendigt kundigung kuendigung abgewandert",
    "resilie resiliation",
    "baja abandono",
)
"""columns that may say who left"""
OUTCOMES = _words(
    "converted conversion won bought purchased responded subscribed renewed outcome",
    "konvertiert gewonnen gekauft verlangert verlaengert ergebnis",
    "converti gagne achete renouvele resultat",
    "convertido ganado comprado renovado resultado",
)
"""columns that may say something else that came of a customer"""
TOPICS = _words("sentiment polarity intent topic label class target")
"""columns that may say what a text is about, or how it is meant"""
PERSONAL = re.compile(
    r"mail|phone|mobil|fax|name|street|address|birth|passport|iban|card"
    r"|telefon|handy|strasse|adress|geburt|ausweis|karte"
    r"|(?<![a-z])(nom|rue|tel)(?![a-z])|prenom|courriel|naissance|carte"
    r"|nombre|apellido|correo|movil|(?<![a-z])calle(?![a-z])|direccion|nacimiento|pasaporte|tarjeta"
)
"""of a `bare` header: columns of customers that tell who somebody is, which are no attributes of a draft"""
