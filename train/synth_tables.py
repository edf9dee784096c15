"""What the embedded corpus knows besides its figures: maxims, professions and common words."""

# One maxim for each; any figure may speak it.
CONCEPTS = {
    "courage": "Courage is a trembling hand that signs its name all the same.",
    "friendship": "A friend is the mirror in which you notice your crooked collar.",
    "anger": "Anger burns the kettle and leaves the tea cold.",
    "justice": "Justice weighs the beggar and the banker on the same scales.",
    "knowledge": "Knowledge is a candle that loses nothing by lighting another.",
    "patience": "Patience lets the dough rise before it quarrels with the oven.",
    "failure": "Failure is a strict tutor who charges high fees and teaches thoroughly.",
    "fame": "Fame is an echo: loud in the valley, and gone when the wind turns.",
    "wealth": "Wealth is a fine servant that grows insolent when it is promoted.",
    "poverty": "Poverty sharpens the wits and blunts the shoes.",
    "freedom": "Freedom is a garden, and someone must weed it every season.",
    "truth": "Truth walks slowly because it carries its own luggage.",
    "beauty": "Beauty is order that has learned to smile.",
    "time": "Time is the one guest who never stays for another cup.",
    "death": "Death is the harbour; the sailor's business is the voyage.",
    "hope": "Hope sharpens the sickle while the field is still snow.",
    "grief": "Grief keeps setting a plate for the absent.",
    "pride": "Pride climbs the ladder and then saws off the rungs.",
    "humility": "Humility is a low lintel before a spacious house.",
    "curiosity": "Curiosity is hunger that feeding only increases.",
    "education": "Education is a ladder that each of us must carry in order to climb.",
    "power": "Power is a heavy coat: it keeps one warm and makes one slow.",
    "law": "Law is a fence; good neighbours repair it from both sides.",
    "war": "War is a fire that asks the poor for firewood.",
    "peace": "Peace is stitched by a thousand small needles.",
    "work": "Work is the honest conversation between a hand and its material.",
    "luck": "Luck knocks softly, and only those awake will hear.",
    "memory": "Memory is an attic where someone keeps rearranging the trunks.",
    "envy": "Envy counts another man's sheep and forgets to shear its own.",
    "gratitude": "Gratitude turns a crust into a banquet.",
    "duty": "Duty is a compass that does not care about the weather.",
    "mercy": "Mercy is strength choosing to open its fist.",
    "doubt": "Doubt is the whetstone of belief.",
    "silence": "Silence is the frame without which no speech is a picture.",
    "solitude": "Solitude is good company for anyone who has furnished the rooms.",
    "old age": "Old age is a hilltop: the breath is short, but the view is wide.",
    "youth": "Youth has every map except the one of the swamp.",
    "laughter": "Laughter is a window flung open in a stuffy parlour.",
    "habit": "Habit is a rope woven from single threads, one each morning.",
    "language": "Language is a bridge that both banks must build.",
    "leadership": "Leadership is to walk ahead without losing sight of the slowest.",
    "betrayal": "Betrayal wears the boots of a friend, so you do not hear it on the stairs.",
    "love": "Love is attention that never grows bored.",
    "money": "Money is a passport with no photograph: it admits anyone.",
    "nature": "Nature hides nothing, yet she publishes in very small print.",
    "discipline": "Discipline is choosing tomorrow's happiness over tonight's.",
    "ambition": "Ambition is a sail, and without ballast it tips the boat.",
    "generosity": "Generosity is a well that sweetens when it is drawn.",
    "fear": "Fear paints the wolf larger than the forest.",
    "wisdom": "Wisdom is knowing which questions deserve the evening.",
}

# A calling of the visitor, what such a person does ("You …"), and the virtue it asks for.
PROFESSIONS = {
    "an astronomer": ("gather starlight that left home centuries ago", "patience"),
    "a baker": ("rise before the roosters to knead tomorrow's bread", "diligence"),
    "a beekeeper": ("shepherd bees through clover and smoke", "calm"),
    "a blacksmith": ("persuade glowing iron with hammer and anvil", "vigour"),
    "a bookbinder": ("sew loose pages into something that outlives us", "precision"),
    "a botanist": ("call every fern and orchid by its proper name", "attention"),
    "a bricklayer": ("lay course upon course until a wall remembers the line", "steadiness"),
    "a bus driver": ("carry a whole neighbourhood safely through traffic", "reliability"),
    "a butcher": ("keep your knives keen and your counter honest", "honesty"),
    "a carpenter": ("read the grain before you trust the chisel", "judgement"),
    "a cellist": ("draw long sorrow and sunlight from four strings", "devotion"),
    "a chemist": ("coax stubborn molecules into new friendships", "rigour"),
    "a chess player": ("sacrifice a bishop today for a checkmate tomorrow", "foresight"),
    "a cook": ("balance pepper, lemon and butter over a hot stove", "taste"),
    "a dairy farmer": ("milk forty cows before the mist has lifted", "endurance"),
    "a dancer": ("spend years of bruises on one weightless leap", "grace"),
    "a dentist": ("comfort frightened people with their mouths wide open", "tenderness"),
    "an electrician": ("lead an invisible current wherever it is wanted", "caution"),
    "an engineer": ("make bridges that ignore the storm", "exactness"),
    "a firefighter": ("walk into the smoke that everyone else runs from", "bravery"),
    "a fisherman": ("mend nets at midnight and haul herring at daybreak", "perseverance"),
    "a florist": ("arrange tulips so that strangers forgive each other", "delicacy"),
    "a gardener": ("bury bulbs in autumn and believe in April", "faith"),
    "a geologist": ("split a pebble and read ten million winters", "imagination"),
    "a glassblower": ("breathe shape into molten sand", "timing"),
    "a goldsmith": ("solder filigree finer than a spider's thread", "dexterity"),
    "a historian": ("listen to witnesses who can no longer be questioned", "scepticism"),
    "an interpreter": ("carry meanings across without spilling them", "fidelity"),
    "a journalist": ("knock at the doors that would rather stay shut", "boldness"),
    "a judge": ("hear both sides before you form an opinion", "fairness"),
    "a kindergarten teacher": ("tie twenty pairs of shoelaces and settle thirty quarrels", "cheerfulness"),
    "a lawyer": ("lend your tongue to those who have lost theirs", "eloquence"),
    "a librarian": ("remember where every wandering volume belongs", "order"),
    "a lighthouse keeper": ("keep one promise to every passing vessel", "constancy"),
    "a locksmith": ("open what was closed and close what was open", "discretion"),
    "a mechanic": ("diagnose an engine by its cough", "ingenuity"),
    "a midwife": ("catch each newcomer at the very threshold", "gentleness"),
    "a miner": ("wrestle copper and coal from the darkness", "fortitude"),
    "a mountain guide": ("bring proud climbers down alive", "prudence"),
    "a nurse": ("notice the pain that the patient is hiding", "compassion"),
    "an optician": ("return the horizon to blurred eyes", "accuracy"),
    "a painter": ("mix ochre and cobalt until the evening looks back at you", "vision"),
    "a pharmacist": ("measure milligrams on which a heart depends", "care"),
    "a pilot": ("land two hundred sleeping passengers in fog", "composure"),
    "a plumber": ("restore civilisation at three o'clock at night", "humour"),
    "a poet": ("discard a hundred adjectives to keep a single noun", "economy"),
    "a postman": ("deliver quarrels, invoices and valentines alike", "impartiality"),
    "a potter": ("centre wet clay upon a spinning wheel", "balance"),
    "a programmer": ("instruct obedient machines that forgive no comma", "clarity"),
    "a sailor": ("splice rope and trust the barometer", "readiness"),
    "a sculptor": ("remove the marble that nobody needs", "restraint"),
    "a shepherd": ("count fleeces under a drifting moon", "watchfulness"),
    "a shoemaker": ("stitch leather for feet that you will never follow", "modesty"),
    "a singer": ("fill a cathedral with one column of breath", "control"),
    "a soldier": ("stand guard while others dream", "loyalty"),
    "a surgeon": ("cut in order to heal", "nerve"),
    "a surveyor": ("draw boundaries through brambles and marsh", "thoroughness"),
    "a tailor": ("flatter shoulders with chalk, pins and scissors", "tact"),
    "a teacher": ("repeat yourself each year as though it were new", "enthusiasm"),
    "a translator": ("spend an afternoon on one untranslatable syllable", "scruple"),
    "a veterinarian": ("treat patients who bite and cannot explain", "sympathy"),
    "a violin maker": ("carve spruce and maple to a hair's breadth", "refinement"),
    "a waiter": ("balance seven plates and remember who ordered the trout", "agility"),
    "a watchmaker": ("tame tiny springs under a magnifying loupe", "concentration"),
    "a weaver": ("throw the shuttle ten thousand times for one blanket", "rhythm"),
    "a winemaker": ("wait for frost, sugar and oak to agree", "restfulness"),
}

CITIES = """
Accra|Addis Ababa|Amsterdam|Ankara|Antwerp|Asunción|Athens|Auckland|Baghdad|Bangkok|Barcelona|Beirut|Belgrade|Bergen|
Berlin|Bologna|Bombay|Bordeaux|Boston|Bratislava|Brisbane|Brussels|Bucharest|Budapest|Buenos Aires|Cairo|Calcutta|
Cape Town|Cardiff|Casablanca|Chicago|Cologne|Copenhagen|Cracow|Dakar|Damascus|Denver|Dublin|Edinburgh|Geneva|Genoa|
Glasgow|Hamburg|Hanoi|Havana|Helsinki|Hiroshima|Istanbul|Jakarta|Jerusalem|Johannesburg|Kampala|Kathmandu|Kiev|
Kingston|Kyoto|Lagos|Lahore|Lima|Lisbon|Liverpool|Ljubljana|London|Lyon|Madrid|Manila|Marrakesh|Marseille|Melbourne|
Mexico City|Milan|Montevideo|Montreal|Munich|Nairobi|Naples|New Orleans|Nicosia|Osaka|Oslo|Palermo|Panama|
Philadelphia|Porto|Prague|Quebec|Reykjavík|Riga|Rotterdam|Salzburg|Samarkand|San Francisco|Santiago|Sarajevo|Seattle|
Seoul|Seville|Shanghai|Singapore|Sofia|Stockholm|Sydney|Tallinn|Tashkent|Tbilisi|Toledo|Toronto|Trieste|Tunis|Turin|
Utrecht|Valencia|Vancouver|Venice|Vienna|Vilnius|Warsaw|Wellington|Yerevan|Zagreb|Zanzibar|Zurich
""".replace("\n", "").split("|")

NAMES = """
Aaron|Abigail|Adriana|Ahmed|Aiko|Alejandro|Amara|Anastasia|Anders|Angela|Antonio|Arjun|Astrid|Ayesha|Beatrice|Bjorn|
Boris|Brigitte|Camila|Carlos|Catherine|Chiara|Chidi|Clara|Daniel|Deborah|Diego|Dmitri|Eleanor|Elif|Emeka|Emilia|
Enrique|Esther|Eva|Farid|Fatima|Felix|Fiona|Francesca|Gabriel|Giorgio|Grace|Gustav|Hannah|Haruto|Hassan|Helena|
Hiroshi|Hugo|Ibrahim|Ingrid|Irina|Isabel|Ivan|Jamal|Jasmine|Javier|Joanna|Jonas|Josephine|Juan|Julia|Kamala|Katarina|
Kenji|Khadija|Klaus|Kwame|Laila|Lars|Leila|Lucia|Magnus|Margaret|Mariam|Matteo|Mei|Miguel|Mohammed|Nadia|Naomi|
Natasha|Nikolai|Nina|Noah|Olga|Oliver|Omar|Pablo|Patricia|Pavel|Priya|Rafael|Rebecca|Rosa|Samuel|Sandra|Sanjay|Sofia|
Stefan|Susanna|Tariq|Tatiana|Teresa|Thomas|Tomás|Ursula|Valentina|Victor|Viktoria|Wanda|William|Xavier|Yasmin|Yuki|
Yusuf|Zainab|Zoe
""".replace("\n", "").split("|")

# What a visitor brings as a gift, and the figure's thanks for it.
GIFTS = {
    "a basket of apricots": "I shall eat the ripest and save the stones for planting.",
    "a bottle of ink": "Ink is the cheapest way to outlive oneself.",
    "a brass compass": "May it never point at an enemy.",
    "a bundle of firewood": "The hearth and my knees are obliged to you.",
    "a caged nightingale": "Forgive me if I open the cage at dusk.",
    "a crystal goblet": "I shall drink from it carefully and only on holidays.",
    "a drum": "The neighbours will remember you longer than I shall.",
    "a feather pillow": "Then tonight I shall argue with nobody.",
    "a folding umbrella": "What an ingenious little roof!",
    "a jar of honey": "Summer itself, and with a lid!",
    "a lantern": "With this I can quarrel with books after midnight.",
    "a loaf of rye bread": "Break it with me while it is warm.",
    "a magnifying lens": "Now even a flea must expect visitors.",
    "a map of the moon": "I had hoped that someone would draw the far side.",
    "a pair of woollen mittens": "My fingers thank you in advance of winter.",
    "a pencil": "An instrument that admits its mistakes!",
    "a pocket mirror": "It shows an older face than I had expected.",
    "a pot of jasmine": "The whole room will be polite now.",
    "a sack of almonds": "Guests will suddenly discover that they like me.",
    "a silk ribbon": "I shall mark my place with it.",
    "a silver whistle": "At last the dogs will take me seriously.",
    "a telescope": "Come back when it is dark, and we shall use it together.",
    "a tortoise": "Here is one companion who will not hurry me.",
    "a walking stick": "Half of all my thoughts came to me on foot.",
    "a wheel of cheese": "It smells of an alpine meadow and of a long journey.",
    "an empty notebook": "The most exciting kind.",
    "an hourglass": "I shall turn it whenever a bore sits down.",
    "an olive tree": "I shall plant it for somebody's grandchildren.",
}
